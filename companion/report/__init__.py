"""Tables and figures made from committed records."""
