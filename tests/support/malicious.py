"""A checkpoint that would run code."""
import os


class RunsCode:

    def __init__(self, command, function=os.system):
        self.command, self.function = command, function

    def __reduce__(self):
        return self.function, (self.command, )
