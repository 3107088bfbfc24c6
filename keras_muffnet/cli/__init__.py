"""The command `muffnet`: a module for each of its subcommands.

Each has `add_arguments`, which gives a parser its flags, and `run`, which does
the work. Neither they nor their flags start Keras.
"""
