"""Faults of the durable memory, each a case of `cmrn bench store`: kills, power cuts, full disks, corruption, abuse."""
