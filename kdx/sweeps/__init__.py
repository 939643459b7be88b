"""Many jobs, each a process of its own.

`sweep` runs the `jobs` of a `board` (sweep.json) through joblib (`parallel`): `launch` says where, here (`processes`)
or on a cluster (`cluster`, `cluster_open`, `cluster_jobs`, its side in `worker`, the same `build` everywhere). `scout`
asks in a process with torch what jobs share and whether what is finished is what is configured. `outlook` looks how
far jobs are; `watch` shows it, in `words`. `pages` and `costs` make what the report needs.
"""
