# The results of one environment for people: figures, and a line for each attack that was not stopped; FAIL where that
# was not to be expected.
def count(f): map(select(f)) | length;
.attacks as $attacks
| "\($attacks | length) attacks tried, \($attacks | count(.held)) held, \($attacks | count(.open and (.held | not))) known to be open, \($attacks | count(.held or .open | not)) not stopped (\($bad) of them unexpected)",
  "held by: " + ([$attacks[] | select(.held) | if .stopped_by == [] then "driver" else .stopped_by[] end]
    | group_by(.) | map("\(.[0]) \(length)") | join(", ")),
  ([$attacks[].controls[]?] | if length == 0 then empty else
    "controls: \(map(select(.alone == null)) | "\(count(.as_it_must_be)) of \(length)") succeeded without what stops the attack; "
    + "\(map(select(.alone != null)) | "\(count(.as_it_must_be)) of \(length)") held by one layer alone; "
    + "\($attacks | count(.no_control)) attacks have no control: \([$attacks[] | select(.no_control) | .attack] | join(" "))" end),
  ($attacks[] | select(.held or .open | not)
    | (if .attack | IN($unexpected | splits("\n")) then "FAIL \($name):" else " " end)
      + " \(.attack): \(.verdict); \(.wrong + .aftermath | join("; "))"),
  ($attacks[] | .attack as $attack | .controls[]? | select(.as_it_must_be | not)
    | "FAIL \($name): \($attack): control \(if .alone then "with \(.alone) alone" else "without any layer" end): \(.verdict); \(.wrong + .aftermath | join("; "))")
