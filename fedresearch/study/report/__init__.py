"""From the directories of runs to tables, figures and a page. Reads run directories only, never a tracker."""
