"""From records to pages that a person reads."""
