"""From text to the scraper: the web server."""
