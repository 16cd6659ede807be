"""The commands of `dms-peer`, one file each: they parse, and hand over to one function.

A new one is a module here with a function of the same name, and its name in `command_line.COMMANDS`. It imports what it
needs when it runs, so that the help and local commands start at once.
"""
