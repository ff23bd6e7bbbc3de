"""What can be wrong with what a person hands to the job or the edge: one clear line each, no traceback."""


class InputError(ValueError):
    """A file, directory, name or option that cannot be used; the message says which and what to do."""


class BundleError(InputError):
    """A bundle that is missing, damaged or of a format this version does not know; the message names the file."""


class NoThreshold(InputError):
    """No threshold meets the target: an answer, not a failure; exit code 3."""
