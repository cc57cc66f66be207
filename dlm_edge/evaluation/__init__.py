"""Quality: tasks with checkable answers, masked NLL, commit flips."""
