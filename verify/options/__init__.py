"""Every option of the command line, defined once: parsers, jobs and reproducing command lines are made from it.

It loads without torch: a command reads its options while the processes that it needs start.
"""
