"""Fine-tuning tasks: a frozen model, its data and its loss, behind one interface."""

from fedlora_sim.tasks.task import Classification as Classification
from fedlora_sim.tasks.task import Completion as Completion
from fedlora_sim.tasks.task import Examples as Examples
from fedlora_sim.tasks.task import Objective as Objective
from fedlora_sim.tasks.task import Task as Task
