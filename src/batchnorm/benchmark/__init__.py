"""What the layers cost on this machine, against torch's: one registry of cases, timed in turns, judged first."""
