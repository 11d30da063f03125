"""`--report DIR`: what was measured as a page that needs nothing else, and its plots as pictures for slides."""
