package control

// DeliverUnrecorded counts a value as handed out that no entry stands for: a planted defect.
func (e *Environment) DeliverUnrecorded() { e.checks.delivered.Add(1) }
