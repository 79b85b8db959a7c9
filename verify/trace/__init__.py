"""What each rank sees of a loop: the recorder, and the records it writes down."""
