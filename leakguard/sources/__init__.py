"""What happens: adapters, each the only one that may import its library."""
