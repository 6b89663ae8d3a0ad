"""Callbacks that drive `DropoutScheduler` from other people's training loops; each module needs its own framework."""
