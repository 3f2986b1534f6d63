"""Everything that one machine needs to run the backend by itself: servers, processes, a mail sink."""
