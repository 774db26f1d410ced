"""Trackers: programs that chart runs. One file each, behind `fedgen.tracking.base.Tracker`."""
