"""Data: sets of samples, their splits, the schedule of what is read, and batches."""
