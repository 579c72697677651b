"""What things cost, beside what they would cost otherwise: ``make bench``."""
