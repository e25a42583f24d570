"""The experiments of the paper on inner products, over the commands of ``influence``, with controls it does not have.

    python -m tests.reproduction              all of them, then a table and a figure of each in results/
    python -m tests.reproduction R4 R5        these
    python -m tests.reproduction --quick      R1, R3 and R9 on less data, as the tests run them

An experiment is a file ``rNN_*.py``: its parts (each a function of settings, run in a folder of its own through the
command line) and the page that is written of what they found.  What a part found is kept under ``build/reproduction``:
a finished part is not run again, and one that was killed goes on from what its commands have stored.
``sizes`` has every size, ``datasets`` makes the data, ``parts`` runs, ``page`` writes.
"""
