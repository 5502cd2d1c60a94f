"""Tables, figures and a page from the directories of runs. Reads run directories only, never a tracker."""
