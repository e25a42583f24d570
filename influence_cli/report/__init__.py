"""Results as pages and pictures: tables of text, figures by matplotlib, and one self-contained HTML file."""
