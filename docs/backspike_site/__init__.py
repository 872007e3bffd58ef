"""What the site is made of besides its pages: extensions of Sphinx, and makers of pages."""
