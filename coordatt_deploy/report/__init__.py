"""Reports: results as text, JSON, HTML, JUnit and Markdown."""
