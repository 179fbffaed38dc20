package ui

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Table aligns rows, the first of which is the heading. The last column is not
// padded; cells are cleaned of control characters.
func Table(rows [][]string) string {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], columns(clean(cell)))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			if i > 0 {
				line.WriteString("  ")
			}
			line.WriteString(pad(clean(cell), widths[i]))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

// Size is a number of bytes for people: 0 B, 1.5 KiB, 12 MiB.
func Size(n int64) string {
	if n < 0 {
		return "-" + Size(-max(n, -1<<62))
	}
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n)/1024, []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := 0
	for v >= 1023.5 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if v < 9.95 {
		return fmt.Sprintf("%.1f %s", v, units[i])
	}
	return fmt.Sprintf("%.0f %s", v, units[i])
}

// Duration is a time span for people: 12ms, 4.2s, 3m05s, 2h10m.
func Duration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 59950*time.Millisecond:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	s := int64(d.Round(time.Second) / time.Second)
	if s < 3600 {
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	}
	return fmt.Sprintf("%dh%02dm", s/3600, s%3600/60)
}

// Error writes an error as every command ends with: what happened, and what to
// do next if hint is not empty. Lines of a multi-line error keep their form, but
// nothing in them drives the terminal.
func Error(w io.Writer, err error, hint string) {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	for i, l := range lines {
		lines[i] = clean(strings.ReplaceAll(l, "\t", "    "))
	}
	fmt.Fprintf(w, "error: %s\n", strings.Join(lines, "\n"))
	if hint != "" {
		fmt.Fprintf(w, "  next: %s\n", clean(hint))
	}
}
