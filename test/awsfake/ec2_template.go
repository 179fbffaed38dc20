package awsfake

import (
	"slices"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

type launchTemplate struct {
	ec2types.LaunchTemplate
	versions map[int64]*templateVersion
}

type templateVersion struct {
	about   *string
	created ec2types.LaunchTemplateVersion
	data    ec2types.RequestLaunchTemplateData
}

func (r *region) template(id, name *string) (*launchTemplate, error) {
	for _, t := range r.templates.all() {
		if (*t.LaunchTemplateId == aws.ToString(id) || id == nil && *t.LaunchTemplateName == aws.ToString(name)) && r.seen(*t.LaunchTemplateId) {
			return t, nil
		}
	}
	if id != nil {
		return nil, refuse("InvalidLaunchTemplateId.NotFound", "The specified launch template, with template ID %s, does not exist.", *id)
	}
	return nil, refuse("InvalidLaunchTemplateName.NotFoundException", "The specified launch template, with template name %s, does not exist.", aws.ToString(name))
}

// version is a template's by number, $Latest or $Default; "" is $Default.
func (t *launchTemplate) version(v *string) (int64, *templateVersion, error) {
	n := *t.DefaultVersionNumber
	switch s := aws.ToString(v); s {
	case "", "$Default":
	case "$Latest":
		n = *t.LatestVersionNumber
	default:
		var err error
		if n, err = strconv.ParseInt(s, 10, 64); err != nil {
			return 0, nil, refuse("InvalidLaunchTemplateId.VersionNotFound", "Could not find the specified version %s for the launch template with ID %s.", s, *t.LaunchTemplateId)
		}
	}
	if tv := t.versions[n]; tv != nil {
		return n, tv, nil
	}
	return 0, nil, refuse("InvalidLaunchTemplateId.VersionNotFound", "Could not find the specified version %d for the launch template with ID %s.", n, *t.LaunchTemplateId)
}

func (r *region) show1(t *launchTemplate, n int64) *ec2types.LaunchTemplateVersion {
	v := t.versions[n]
	s := &ec2types.LaunchTemplateVersion{LaunchTemplateId: t.LaunchTemplateId, LaunchTemplateName: t.LaunchTemplateName, VersionNumber: &n, VersionDescription: v.about,
		DefaultVersion: aws.Bool(n == *t.DefaultVersionNumber), CreateTime: v.created.CreateTime, CreatedBy: v.created.CreatedBy, LaunchTemplateData: &ec2types.ResponseLaunchTemplateData{}}
	copyAs(s.LaunchTemplateData, &v.data)
	return s
}

func (t *launchTemplate) add(r *region, about *string, data *ec2types.RequestLaunchTemplateData) int64 {
	n := aws.ToInt64(t.LatestVersionNumber) + 1
	t.versions[n] = &templateVersion{about: about, data: *data, created: ec2types.LaunchTemplateVersion{CreateTime: aws.Time(r.cloud.now().UTC()), CreatedBy: aws.String("arn:aws:iam::" + Account + ":root")}}
	t.LatestVersionNumber = &n
	return n
}

func (r *region) createLaunchTemplate(in *ec2.CreateLaunchTemplateInput) (*ec2.CreateLaunchTemplateOutput, error) {
	return once(r, "CreateLaunchTemplate", in.ClientToken, in, "IdempotentParameterMismatch", func() (*ec2.CreateLaunchTemplateOutput, error) {
		for _, t := range r.templates.all() {
			if *t.LaunchTemplateName == aws.ToString(in.LaunchTemplateName) {
				return nil, refuse("InvalidLaunchTemplateName.AlreadyExistsException", "Launch template name already in use.")
			}
		}
		id := r.new(r.cloud.id("lt"), ec2types.ResourceTypeLaunchTemplate, in.TagSpecifications)
		t := &launchTemplate{versions: map[int64]*templateVersion{}, LaunchTemplate: ec2types.LaunchTemplate{LaunchTemplateId: &id, LaunchTemplateName: in.LaunchTemplateName,
			CreateTime: aws.Time(r.cloud.now().UTC()), CreatedBy: aws.String("arn:aws:iam::" + Account + ":root"), DefaultVersionNumber: aws.Int64(1)}}
		t.add(r, in.VersionDescription, in.LaunchTemplateData)
		r.templates.put(id, t)
		return &ec2.CreateLaunchTemplateOutput{LaunchTemplate: r.showTemplate(t)}, nil
	})
}

func (r *region) showTemplate(t *launchTemplate) *ec2types.LaunchTemplate {
	s := t.LaunchTemplate
	s.Tags = r.tags[*t.LaunchTemplateId]
	return &s
}

func (r *region) createLaunchTemplateVersion(in *ec2.CreateLaunchTemplateVersionInput) (*ec2.CreateLaunchTemplateVersionOutput, error) {
	return once(r, "CreateLaunchTemplateVersion", in.ClientToken, in, "IdempotentParameterMismatch", func() (*ec2.CreateLaunchTemplateVersionOutput, error) {
		t, err := r.template(in.LaunchTemplateId, in.LaunchTemplateName)
		if err != nil {
			return nil, err
		}
		data := ec2types.RequestLaunchTemplateData{}
		if in.SourceVersion != nil {
			_, v, err := t.version(in.SourceVersion)
			if err != nil {
				return nil, err
			}
			data = v.data
		}
		copyAs(&data, in.LaunchTemplateData)
		n := t.add(r, in.VersionDescription, &data)
		return &ec2.CreateLaunchTemplateVersionOutput{LaunchTemplateVersion: r.show1(t, n)}, nil
	})
}

func (r *region) describeLaunchTemplates(in *ec2.DescribeLaunchTemplatesInput) (*ec2.DescribeLaunchTemplatesOutput, error) {
	out := &ec2.DescribeLaunchTemplatesOutput{LaunchTemplates: []ec2types.LaunchTemplate{}}
	for _, id := range in.LaunchTemplateIds {
		if _, err := r.template(&id, nil); err != nil {
			return nil, err
		}
	}
	for _, name := range in.LaunchTemplateNames {
		if _, err := r.template(nil, &name); err != nil {
			return nil, err
		}
	}
	for _, t := range r.templates.all() {
		ok, err := r.fits(*t.LaunchTemplateId, in.Filters, map[string][]string{"launch-template-name": one(t.LaunchTemplateName)})
		if err != nil {
			return nil, err
		}
		if ok && r.seen(*t.LaunchTemplateId) && (len(in.LaunchTemplateIds) == 0 || slices.Contains(in.LaunchTemplateIds, *t.LaunchTemplateId)) && (len(in.LaunchTemplateNames) == 0 || slices.Contains(in.LaunchTemplateNames, *t.LaunchTemplateName)) {
			out.LaunchTemplates = append(out.LaunchTemplates, *r.showTemplate(t))
		}
	}
	var err error
	out.LaunchTemplates, out.NextToken, err = page(out.LaunchTemplates, in.MaxResults, in.NextToken, 200)
	return out, err
}

func (r *region) describeLaunchTemplateVersions(in *ec2.DescribeLaunchTemplateVersionsInput) (*ec2.DescribeLaunchTemplateVersionsOutput, error) {
	out := &ec2.DescribeLaunchTemplateVersionsOutput{LaunchTemplateVersions: []ec2types.LaunchTemplateVersion{}}
	list := r.templates.all()
	if in.LaunchTemplateId != nil || in.LaunchTemplateName != nil {
		t, err := r.template(in.LaunchTemplateId, in.LaunchTemplateName)
		if err != nil {
			return nil, err
		}
		list = []*launchTemplate{t}
	} else if !slices.Contains(in.Versions, "$Latest") && !slices.Contains(in.Versions, "$Default") {
		return nil, refuse("MissingParameter", "Either the launch template ID or the launch template name must be specified")
	}
	for _, t := range list {
		var numbers []int64
		for _, v := range in.Versions {
			n, _, err := t.version(&v)
			if err != nil {
				return nil, err
			}
			numbers = append(numbers, n)
		}
		if len(in.Versions) == 0 {
			for n := range t.versions {
				if minVersion, _ := strconv.ParseInt(aws.ToString(in.MinVersion), 10, 64); n < minVersion {
					continue
				}
				if maxVersion, err := strconv.ParseInt(aws.ToString(in.MaxVersion), 10, 64); err == nil && n > maxVersion {
					continue
				}
				numbers = append(numbers, n)
			}
		}
		slices.Sort(numbers)
		slices.Reverse(numbers)
		for _, n := range slices.Compact(numbers) {
			out.LaunchTemplateVersions = append(out.LaunchTemplateVersions, *r.show1(t, n))
		}
	}
	var err error
	out.LaunchTemplateVersions, out.NextToken, err = page(out.LaunchTemplateVersions, in.MaxResults, in.NextToken, 200)
	return out, err
}

func (r *region) modifyLaunchTemplate(in *ec2.ModifyLaunchTemplateInput) (*ec2.ModifyLaunchTemplateOutput, error) {
	t, err := r.template(in.LaunchTemplateId, in.LaunchTemplateName)
	if err != nil {
		return nil, err
	}
	n, _, err := t.version(in.DefaultVersion)
	if err != nil {
		return nil, err
	}
	t.DefaultVersionNumber = &n
	return &ec2.ModifyLaunchTemplateOutput{LaunchTemplate: r.showTemplate(t)}, nil
}

func (r *region) deleteLaunchTemplateVersions(in *ec2.DeleteLaunchTemplateVersionsInput) (*ec2.DeleteLaunchTemplateVersionsOutput, error) {
	t, err := r.template(in.LaunchTemplateId, in.LaunchTemplateName)
	if err != nil {
		return nil, err
	}
	out := &ec2.DeleteLaunchTemplateVersionsOutput{}
	for _, v := range in.Versions {
		n, err := strconv.ParseInt(v, 10, 64)
		code := ec2types.LaunchTemplateErrorCode("")
		switch {
		case err != nil || t.versions[n] == nil:
			code = ec2types.LaunchTemplateErrorCodeLaunchTemplateVersionDoesNotExist
		case n == *t.DefaultVersionNumber:
			return nil, refuse("OperationNotPermitted", "You cannot delete the default version of a launch template: %s", v)
		}
		if code != "" {
			out.UnsuccessfullyDeletedLaunchTemplateVersions = append(out.UnsuccessfullyDeletedLaunchTemplateVersions, ec2types.DeleteLaunchTemplateVersionsResponseErrorItem{LaunchTemplateId: t.LaunchTemplateId,
				LaunchTemplateName: t.LaunchTemplateName, VersionNumber: &n, ResponseError: &ec2types.ResponseError{Code: code, Message: aws.String("version " + v)}})
			continue
		}
		delete(t.versions, n)
		out.SuccessfullyDeletedLaunchTemplateVersions = append(out.SuccessfullyDeletedLaunchTemplateVersions, ec2types.DeleteLaunchTemplateVersionsResponseSuccessItem{LaunchTemplateId: t.LaunchTemplateId, LaunchTemplateName: t.LaunchTemplateName, VersionNumber: &n})
	}
	return out, nil
}

func (r *region) deleteLaunchTemplate(in *ec2.DeleteLaunchTemplateInput) (*ec2.DeleteLaunchTemplateOutput, error) {
	t, err := r.template(in.LaunchTemplateId, in.LaunchTemplateName)
	if err != nil {
		return nil, err
	}
	r.templates.del(*t.LaunchTemplateId)
	delete(r.tags, *t.LaunchTemplateId)
	return &ec2.DeleteLaunchTemplateOutput{LaunchTemplate: &t.LaunchTemplate}, nil
}

// resolved is a launch with its template's data in it, and which template that was.
func (r *region) resolved(in *ec2.RunInstancesInput) (out *ec2.RunInstancesInput, id, version string, err error) {
	full := *in
	if in.LaunchTemplate == nil {
		return &full, "", "", nil
	}
	t, err := r.template(in.LaunchTemplate.LaunchTemplateId, in.LaunchTemplate.LaunchTemplateName)
	if err != nil {
		return nil, "", "", err
	}
	n, v, err := t.version(in.LaunchTemplate.Version)
	if err != nil {
		return nil, "", "", err
	}
	base := ec2.RunInstancesInput{}
	copyAs(&base, &v.data)
	// Of block devices and tags, the request's are added to the template's.
	devices, tags := base.BlockDeviceMappings, base.TagSpecifications
	copyAs(&base, in)
	for _, d := range devices {
		if !slices.ContainsFunc(in.BlockDeviceMappings, func(m ec2types.BlockDeviceMapping) bool {
			return aws.ToString(m.DeviceName) == aws.ToString(d.DeviceName)
		}) && len(in.BlockDeviceMappings) > 0 {
			base.BlockDeviceMappings = append(base.BlockDeviceMappings, d)
		}
	}
	if len(in.TagSpecifications) > 0 {
		base.TagSpecifications = append(slices.Clone(tags), in.TagSpecifications...)
	}
	return &base, *t.LaunchTemplateId, strconv.FormatInt(n, 10), nil
}
