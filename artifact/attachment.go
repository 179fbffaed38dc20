package artifact

import (
	"errors"
	"fmt"
	"regexp"
)

var mediaForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$`)

// annotationCreated is where an attachment's time stands among its notes.
const annotationCreated = "org.opencontainers.image.created"

// CheckAttachment says what is wrong with an attachment, or nil: every Attacher
// refuses the same ones.
func CheckAttachment(a Attachment, body []byte) error {
	switch {
	case !mediaForm.MatchString(a.Kind):
		return fmt.Errorf("its kind %.150q is no media type", a.Kind)
	case !mediaForm.MatchString(a.Media):
		return fmt.Errorf("its media type %.150q is none", a.Media)
	case len(body) == 0:
		return errors.New("it has no bytes")
	case len(body) > MaxAttachment:
		return fmt.Errorf("it has %d bytes; at most %d are kept", len(body), MaxAttachment)
	case a.Created.IsZero() || a.Created.Nanosecond() != 0:
		return fmt.Errorf("it needs the time when it was made, to the second, not %s", a.Created)
	case a.Notes[annotationCreated] != "":
		return fmt.Errorf("the note %s is for its time", annotationCreated)
	}
	return nil
}
