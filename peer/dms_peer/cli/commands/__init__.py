"""The commands of `dms-peer`, one file each: they parse their options and call one function.

To add a command, add a module here with a function of the same name, and its name to `app.COMMANDS`. The module imports
what it needs when the command runs, so that the help and local commands start at once.
"""
