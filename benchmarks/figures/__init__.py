"""Each module measures a few figures: `measure(servers, scale)` returns them."""
