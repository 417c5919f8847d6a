"""Training: rows packed without contamination, a loop to read in one sitting, checkpoints that resume exactly."""
