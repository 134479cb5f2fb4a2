"""What a CUDA GPU does with our engines: `python -m benchmarks.gpu_check` on that machine.

Each part runs in a process of its own, under a limit of time, and leaves a file; together they make
one record, profiles/measured/DEVICE/DATE.json. No figure in this repository comes from it yet.
"""
