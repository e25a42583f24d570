"""The processes of one run under ``torchrun``: the first one leads, the others do their part of what it hands out.

The leader runs the command as one process alone would.  Where work can be divided it hands out a **job**, which every
process runs, and in which they take units by turn, add up sums or train together.  The others have no say in anything:
they wait for jobs, so that no two processes can decide differently.

An error in one process ends the job in all of them, and the leader raises it.  A process that is killed ends the run;
``torchrun --max-restarts`` starts it again, and what is stored is not computed again.
"""
