"""What a project is made of: its messages and handlers, what a process of it works with, its document."""

from messaging.project.project import Names as Names
from messaging.project.project import Project as Project
