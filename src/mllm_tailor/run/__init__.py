"""The waist of the house: everything a command does, composed from the rooms below over one run folder."""
