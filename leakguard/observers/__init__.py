"""Who is told: adapters that know nothing of one another."""
