"""What commands write with ``--json``: one type for each kind of document."""
