"""One page about one or several runs, from what they leave in their folders."""
