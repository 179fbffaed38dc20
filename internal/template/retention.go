package template

import (
	"strings"

	"github.com/rebake/rebake/internal/retain"
)

// retentionBlock is retention: as it is written.
type retentionBlock struct {
	KeepLast     *int        `yaml:"keep_last" jsonschema_description:"the newest so many images stay"`
	MaxAge       *retain.Age `yaml:"max_age" jsonschema_description:"images younger than this stay, such as 30d or 12h"`
	MinAge       *retain.Age `yaml:"min_age" jsonschema_description:"nothing younger than this is ever removed (1d)"`
	KeepTags     []string    `yaml:"keep_tags" jsonschema_description:"patterns of the tags that keep their image, such as stable or release-*; every tag does where this is not given, latest always"`
	KeepPrevious *int        `yaml:"keep_previous" jsonschema_description:"how many proven images before the current one of each fleet stay, for a rollback (1)"`
	KeepParents  bool        `yaml:"keep_parents" jsonschema_description:"true: the images that a kept image was made from stay too"`
	AMI          *amiBlock   `yaml:"ami" jsonschema_description:"how the AMIs of removed images go"`
}

// amiBlock is retention.ami as it is written.
type amiBlock struct {
	Deprecate *retain.Age `yaml:"deprecate" jsonschema_description:"others are no longer shown them so long after their image was removed, such as 30d"`
	Disable   *retain.Age `yaml:"disable" jsonschema_description:"they can not be launched any more so long after"`
	Delete    *retain.Age `yaml:"delete" jsonschema_description:"they go with their snapshots so long after"`
	MinAge    *retain.Age `yaml:"min_age" jsonschema_description:"nothing is done with AMIs younger than this (1d)"`
	Shared    bool        `yaml:"shared" jsonschema_description:"true: disable and delete also those that other accounts may launch"`
}

func (b *amiBlock) read() *retain.Ladder {
	if b == nil {
		return nil
	}
	l := &retain.Ladder{Deprecate: b.Deprecate, Disable: b.Disable, Delete: b.Delete, MinAge: retain.DefaultMinAge, Shared: b.Shared}
	if b.MinAge != nil {
		l.MinAge = *b.MinAge
	}
	return l
}

// read checks the block and sets its defaults; nil for none.
func (b *retentionBlock) read(at Block) (*retain.Rules, error) {
	if b == nil {
		return nil, nil
	}
	r := retain.Default()
	r.KeepTags, r.KeepParents, r.AMI = b.KeepTags, b.KeepParents, b.AMI.read()
	if b.KeepLast != nil {
		if r.KeepLast = *b.KeepLast; r.KeepLast < 1 {
			return nil, at.Errorf("keep_last", "keep_last must be at least 1: what the fleet of a name needs stays, but without a fleet the last image would go")
		}
	}
	if b.MaxAge != nil {
		if r.MaxAge = *b.MaxAge; r.MaxAge <= 0 {
			return nil, at.Errorf("max_age", "max_age must be more than nothing, such as 30d")
		}
	}
	if b.MinAge != nil {
		r.MinAge = *b.MinAge
	}
	if b.KeepPrevious != nil {
		r.KeepPrevious = *b.KeepPrevious
	}
	if r.Empty() && r.AMI == nil {
		return nil, at.Errorf("", "retention needs keep_last or max_age, or nothing is ever removed: for example {keep_last: 7, max_age: 30d}")
	}
	if err := r.Check(); err != nil {
		return nil, at.Errorf(retentionKey(err), "%w", err)
	}
	return &r, nil
}

// retentionKey is the key that a rule's error begins with, if it does.
func retentionKey(err error) string {
	word, _, _ := strings.Cut(err.Error(), " ")
	word = strings.TrimSuffix(word, ":")
	if word == "ami" {
		return word
	}
	if !strings.Contains(word, "_") {
		return ""
	}
	return word
}
