"""The commands of `dms-peer`, one file each: they parse, and hand over to one function.

A command's module imports what it needs when it runs, so that the help and local commands start at once.
"""
