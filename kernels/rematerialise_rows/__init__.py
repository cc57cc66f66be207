"""Keys or values of some stored positions, from the codes of what they are computed from: XQuant's rematerialisation."""
