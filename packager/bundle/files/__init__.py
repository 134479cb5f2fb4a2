"""Files that every bundle holds as they are here."""
