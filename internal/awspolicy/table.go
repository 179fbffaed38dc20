package awspolicy

// What things are called in ARNs.
const (
	images         = "arn:PARTITION:ec2:*::image/*"
	snapshots      = "arn:PARTITION:ec2:*::snapshot/*"
	instances      = "arn:PARTITION:ec2:*:*:instance/*"
	volumes        = "arn:PARTITION:ec2:*:*:volume/*"
	interfaces     = "arn:PARTITION:ec2:*:*:network-interface/*"
	spots          = "arn:PARTITION:ec2:*:*:spot-instances-request/*"
	securityGroups = "arn:PARTITION:ec2:*:*:security-group/*"
	subnets        = "arn:PARTITION:ec2:*:*:subnet/*"
	vpcs           = "arn:PARTITION:ec2:*:*:vpc/*"
	keyPairs       = "arn:PARTITION:ec2:*:*:key-pair/*"
	templates      = "arn:PARTITION:ec2:*:*:launch-template/*"
	targetGroups   = "arn:PARTITION:elasticloadbalancing:*:*:targetgroup/*"
	listeners      = "arn:PARTITION:elasticloadbalancing:*:*:listener/app/*"
	rules          = "arn:PARTITION:elasticloadbalancing:*:*:listener-rule/app/*"
	groups         = "arn:PARTITION:autoscaling:*:*:autoScalingGroup:*:autoScalingGroupName/*"
)

// given: the request gives what it makes this tag, whatever its value.
func given(tag string) Condition {
	return Condition{"Null": {"aws:RequestTag/" + tag: {"false"}}}
}

// has: the thing has this tag, whatever its value.
func has(tag string) Condition {
	return Condition{"Null": {"aws:ResourceTag/" + tag: {"false"}}}
}

// The tags that rebake gives what it makes.
const (
	ofImage = "rebake:digest"
	ofBuild = "rebake:build"
	ofFleet = "rebake:fleet"
)

var table = map[Feature][]Grant{
	Publish: {
		{Sid: "Look", Calls: []string{"ec2:DescribeImages", "ec2:DescribeSnapshots"}},
		{Sid: "BeginSnapshot", Calls: []string{"ebs:StartSnapshot"}, Resources: []string{snapshots}, When: given(ofImage)},
		{Sid: "FillSnapshot", Calls: []string{"ebs:PutSnapshotBlock", "ebs:CompleteSnapshot"}, Resources: []string{snapshots}, When: has(ofImage)},
		{Sid: "Register", Calls: []string{"ec2:RegisterImage"}, Resources: []string{images, snapshots}},
		{Sid: "TagImages", Calls: []string{"ec2:CreateTags"}, Resources: []string{images, snapshots}, When: given(ofImage)},
	},
	Copy: {
		{Sid: "Look", Calls: []string{"ec2:DescribeImages"}},
		{Sid: "Copy", Calls: []string{"ec2:CopyImage"}, Resources: []string{images, snapshots}},
		{Sid: "TagImages", Calls: []string{"ec2:CreateTags"}, Resources: []string{images, snapshots}, When: given(ofImage)},
	},
	Share:     {{Sid: "ChangeImages", Calls: []string{"ec2:ModifyImageAttribute"}, Resources: []string{images}, When: has(ofImage)}},
	Deprecate: {{Sid: "ChangeImages", Calls: []string{"ec2:EnableImageDeprecation"}, Resources: []string{images}, When: has(ofImage)}},
	Protect:   {{Sid: "ChangeImages", Calls: []string{"ec2:EnableImageDeregistrationProtection"}, Resources: []string{images}, When: has(ofImage)}},
	Keys: {{Sid: "UseKeys", Resources: []string{"KEYS"},
		Also: []string{"kms:DescribeKey", "kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncryptFrom", "kms:ReEncryptTo"}},
		{Sid: "LendKeys", Resources: []string{"KEYS"}, Also: []string{"kms:CreateGrant"}, When: Condition{"Bool": {"kms:GrantIsForAWSResource": {"true"}}}}},
	Retention: {
		{Sid: "Look", Calls: []string{"ec2:DescribeImages", "ec2:DescribeSnapshots", "ec2:DescribeImageAttribute", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplateVersions",
			"autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeLaunchConfigurations"},
			Also: []string{"ssm:GetParameters"}}, // launch templates may name an AMI by one
		{Sid: "ChangeImages", Calls: []string{"ec2:EnableImageDeprecation", "ec2:DisableImage", "ec2:DeregisterImage", "ec2:EnableImage", "ec2:DisableImageDeprecation"}, Resources: []string{images}, When: has(ofImage)},
		{Sid: "DeleteSnapshots", Calls: []string{"ec2:DeleteSnapshot"}, Resources: []string{snapshots}, When: has(ofImage)},
	},
	Bake: {
		{Sid: "Look", Calls: []string{"ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeSnapshots", "ec2:DescribeVolumes", "ec2:DescribeVpcs", "ec2:DescribeSubnets", "ec2:DescribeSecurityGroups"}},
		{Sid: "LaunchBuilds", Calls: []string{"ec2:RunInstances"}, Resources: []string{instances, volumes, interfaces, spots}, When: given(ofBuild)},
		{Sid: "LaunchFrom", Calls: []string{"ec2:RunInstances"}, Resources: []string{images, snapshots, subnets, securityGroups, keyPairs}},
		{Sid: "TagBuilds", Calls: []string{"ec2:CreateTags"}, Resources: []string{instances, volumes, interfaces, spots, snapshots, images, securityGroups}, When: given(ofBuild)},
		{Sid: "EndBuilds", Calls: []string{"ec2:StopInstances", "ec2:TerminateInstances", "ec2:GetConsoleOutput"}, Resources: []string{instances}, When: has(ofBuild)},
		{Sid: "SnapshotBuilds", Calls: []string{"ec2:CreateSnapshot"}, Resources: []string{volumes}, When: has(ofBuild)},
		{Sid: "MakeSnapshots", Calls: []string{"ec2:CreateSnapshot"}, Resources: []string{snapshots}, When: given(ofBuild)},
		{Sid: "ReadSnapshots", Calls: []string{"ebs:ListSnapshotBlocks", "ebs:ListChangedBlocks", "ebs:GetSnapshotBlock"}, Resources: []string{snapshots}},
		{Sid: "Register", Calls: []string{"ec2:RegisterImage"}, Resources: []string{images, snapshots}},
		{Sid: "SweepBuilds", Calls: []string{"ec2:DeleteVolume", "ec2:DeleteSnapshot", "ec2:DeregisterImage", "ec2:DeleteTags"}, Resources: []string{volumes, snapshots, images}, When: has(ofBuild)},
	},
	Group: {
		{Sid: "MakeGroups", Calls: []string{"ec2:CreateSecurityGroup"}, Resources: []string{securityGroups}, When: given(ofBuild)},
		{Sid: "MakeGroupsIn", Calls: []string{"ec2:CreateSecurityGroup"}, Resources: []string{vpcs}},
		{Sid: "ChangeGroups", Calls: []string{"ec2:AuthorizeSecurityGroupIngress", "ec2:DeleteSecurityGroup"}, Resources: []string{securityGroups}, When: has(ofBuild)},
	},
	SSM: {
		{Sid: "Tunnel", Also: []string{"ssm:StartSession"}, Resources: []string{instances}, When: Condition{"Null": {"ssm:resourceTag/" + ofBuild: {"false"}}}},
		{Sid: "TunnelBy", Also: []string{"ssm:StartSession"}, Resources: []string{"arn:PARTITION:ssm:*:*:document/AWS-StartPortForwardingSession"}},
		{Sid: "EndTunnels", Also: []string{"ssm:TerminateSession", "ssm:ResumeSession"}, Resources: []string{"arn:PARTITION:ssm:*:*:session/*"}},
	},
	Profile: {{Sid: "PassRoles", Also: []string{"iam:PassRole"}, Resources: []string{"arn:PARTITION:iam::*:role/*"},
		When: Condition{"StringEquals": {"iam:PassedToService": {"ec2.amazonaws.com", "ec2.amazonaws.com.cn"}}}}},
	Pool: {
		{Sid: "Look", Calls: []string{"ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions",
			"autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeInstanceRefreshes", "autoscaling:DescribeLifecycleHooks", "autoscaling:DescribePolicies",
			"autoscaling:DescribeScalingActivities", "autoscaling:DescribeScheduledActions"}},
		{Sid: "MakeTemplates", Calls: []string{"ec2:CreateLaunchTemplate"}, Resources: []string{templates}, When: given(ofFleet)},
		{Sid: "TagTemplates", Also: []string{"ec2:CreateTags"}, Resources: []string{templates, instances, volumes, interfaces}, When: given(ofFleet)},
		{Sid: "DeleteTemplates", Calls: []string{"ec2:DeleteLaunchTemplate"}, Resources: []string{templates}, When: has(ofFleet)},
		{Sid: "LookAtFleets", Calls: []string{"ec2:GetConsoleOutput"}, Resources: []string{instances}, When: has(ofFleet)},
		{Sid: "LaunchFleets", Also: []string{"ec2:RunInstances"}, Resources: []string{"arn:PARTITION:ec2:*:*:*/*", images, snapshots},
			When: Condition{"ArnLike": {"ec2:LaunchTemplate": {"arn:PARTITION:ec2:*:*:launch-template/*"}}}},
		{Sid: "MakeFleets", Calls: []string{"autoscaling:CreateAutoScalingGroup", "autoscaling:CreateOrUpdateTags"}, Resources: []string{groups}, When: given(ofFleet)},
		{Sid: "ChangeFleets", Calls: []string{"autoscaling:BatchPutScheduledUpdateGroupAction", "autoscaling:DeleteAutoScalingGroup", "autoscaling:DetachLoadBalancerTargetGroups", "autoscaling:LaunchInstances", "autoscaling:PutLifecycleHook",
			"autoscaling:PutScalingPolicy", "autoscaling:SetDesiredCapacity", "autoscaling:SetInstanceProtection", "autoscaling:TerminateInstanceInAutoScalingGroup", "autoscaling:UpdateAutoScalingGroup"},
			Resources: []string{groups}, When: has(ofFleet)},
	},
	Refresh: {
		{Sid: "Look", Calls: []string{"ec2:DescribeImages", "ec2:DescribeInstances", "ec2:DescribeLaunchTemplates", "ec2:DescribeLaunchTemplateVersions",
			"autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeInstanceRefreshes", "autoscaling:DescribeScalingActivities", "elasticloadbalancing:DescribeTargetHealth"}},
		{Sid: "MakeTemplates", Calls: []string{"ec2:CreateLaunchTemplate"}, Resources: []string{templates}, When: given(ofFleet)},
		{Sid: "TagTemplates", Calls: []string{"ec2:CreateTags"}, Resources: []string{templates, instances, volumes, interfaces}, When: given(ofFleet)},
		{Sid: "DeleteTemplates", Calls: []string{"ec2:DeleteLaunchTemplate"}, Resources: []string{templates}, When: has(ofFleet)},
		{Sid: "LookAtFleets", Calls: []string{"ec2:GetConsoleOutput"}, Resources: []string{instances}, When: has(ofFleet)},
		{Sid: "LaunchFleets", Also: []string{"ec2:RunInstances"}, Resources: []string{"arn:PARTITION:ec2:*:*:*/*", images, snapshots},
			When: Condition{"ArnLike": {"ec2:LaunchTemplate": {"arn:PARTITION:ec2:*:*:launch-template/*"}}}},
		{Sid: "RefreshGroups", Calls: []string{"autoscaling:StartInstanceRefresh", "autoscaling:RollbackInstanceRefresh", "autoscaling:CancelInstanceRefresh"}, Resources: []string{"ADOPTED"}},
	},
	Router: {
		{Sid: "Look", Calls: []string{"ec2:DescribeInstances", "elasticloadbalancing:DescribeLoadBalancers", "elasticloadbalancing:DescribeRules", "elasticloadbalancing:DescribeTags",
			"elasticloadbalancing:DescribeTargetGroups", "elasticloadbalancing:DescribeTargetGroupAttributes", "elasticloadbalancing:DescribeTargetHealth"}},
		{Sid: "MakeRules", Calls: []string{"elasticloadbalancing:CreateRule", "elasticloadbalancing:CreateTargetGroup", "elasticloadbalancing:AddTags"}, Resources: []string{listeners, rules, targetGroups}, When: given(ofFleet)},
		{Sid: "ChangeRules", Calls: []string{"elasticloadbalancing:ModifyRule", "elasticloadbalancing:DeleteRule", "elasticloadbalancing:ModifyTargetGroupAttributes", "elasticloadbalancing:DeleteTargetGroup",
			"elasticloadbalancing:RegisterTargets", "elasticloadbalancing:DeregisterTargets"}, Resources: []string{rules, targetGroups}, When: has(ofFleet)},
	},
	Adopted: {
		{Sid: "SwitchAdopted", Calls: []string{"elasticloadbalancing:ModifyRule", "elasticloadbalancing:AddTags", "elasticloadbalancing:RegisterTargets", "elasticloadbalancing:DeregisterTargets"}, Resources: []string{"ADOPTED"}},
	},
	Gates: {{Sid: "Look", Calls: []string{"cloudwatch:DescribeAlarms", "cloudwatch:GetMetricData"}}},
	State: {
		{Sid: "ListState", Calls: []string{"s3:ListObjectsV2"}, Resources: []string{"arn:PARTITION:s3:::BUCKET"}, When: Condition{"StringLike": {"s3:prefix": {"PREFIX*"}}}},
		{Sid: "KeepState", Calls: []string{"s3:GetObject", "s3:PutObject", "s3:DeleteObjects"}, Resources: []string{"arn:PARTITION:s3:::BUCKET/PREFIX*"}},
	},
}
