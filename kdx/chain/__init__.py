"""One run: a chain of stages, teachers first.

`chain` carries it out, with what its stages share (`context`): `plan` reuses, trains, loads or imports each, `check`
tries what will be trained, `stage` trains it, `record` tells it in summary.json. A stage's `parts` come from `batches`,
`objective`, `optimizer` and `start`; `loaded` reads one back; `foreign` and `headless` take weights that kdx did not
train. `index` and `finished` find again what was trained, by its `fingerprints`, in which `code`, `imports` and
`deeds` stand for a user's code. `logits` names the files of cached logits, `team` orders other ranks, which `beside`
is, and `drawing`, `costs` and `methods` serve pictures, a sweep's costs and `python -m kdx.methods`.
"""
