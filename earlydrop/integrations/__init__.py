"""Callbacks that drive dropout in the trainers of other frameworks; each needs its framework."""
