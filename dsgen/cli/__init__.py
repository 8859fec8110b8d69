"""The command line: parse the options, call one stage, print one result.

`app` is the program; `command` what all commands have in common; `options`, `settings_options` and `config` where the
values of options come from; `results` how a command answers. The commands stand in `corpus_commands`,
`depth_commands`, `store_commands` and `training_commands`. Stages are imported by the functions that call them, so
that `dsgen --help` loads none of torch, zarr and cv2.
"""
