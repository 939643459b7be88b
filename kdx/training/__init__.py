"""One training: a learner under its teachers, from the first step or from where an earlier one stopped.

`trainer` is the loop over `learner` and `teachers`, with `schedules`, `averaging` (of weights), `runtime` (device,
precision, compiling), `distributed` and `synced_norm` (several ranks). `progress` is how far it is; `keeper` saves and
resumes it, beside the next epoch (`background`) and when asked to stop (`stopping`). `evaluation` scores a split.
"""
