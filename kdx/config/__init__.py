"""From a composed config to plain settings; nothing behind `settings` sees a config, and only `build` makes objects.

`schema` declares every key with its type and its rule, `swap_points` the keys that a `_target_` gives a meaning.
`checks`, `roles`, `augment`, `unlabelled` and `hydra_keys` say what is wrong with values, `problems` collects it.
`paths`, `folder_name` and `stage_overrides` read what users type.
"""
