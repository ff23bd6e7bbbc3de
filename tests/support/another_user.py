"""`gatekeeper ...` as another user: python -m tests.support.another_user UID ARGUMENTS, started by root.

What the command needs is imported before: the other user may not be able to enter the folder that this Python lies in.
"""

import os
import sys
from importlib import import_module

from service.cli import main

NEEDED = ("encodings.idna", "uvicorn.lifespan.on", "models.inference.classifier", "service.app")

if __name__ == "__main__":
    user, *arguments = sys.argv[1:]
    if arguments[0] == "serve":
        for name in NEEDED:
            import_module(name)
    os.setgroups([])
    os.setresgid(int(user), int(user), int(user))
    os.setresuid(int(user), int(user), int(user))
    sys.exit(main(arguments))
