"""What people look at: the page of an evaluation and the pictures. page.py is the way in."""
