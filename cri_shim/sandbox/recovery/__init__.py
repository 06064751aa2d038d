"""What a former daemon left: taken over, undone, or wiped."""
